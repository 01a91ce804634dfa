"""Model folders: published names and formats on disk, our modules in memory."""
