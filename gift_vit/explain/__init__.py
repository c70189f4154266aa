"""What an adapter looks at: cluster maps, and the figure that shows them."""
