"""What training needs: parameters that get gradients, sensible first outputs, targets one token ahead."""
