"""Looking at a manifest: statistics, contact sheets, leaks, images that changed; and the pages that show them."""
