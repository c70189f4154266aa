"""What an adapter looks at: cluster maps, the figures that show them, and how much they tell."""
