"""What methods see and return: spots, their graph, tiles."""
