"""Reports as one HTML file each: what the pages of several programs share."""
