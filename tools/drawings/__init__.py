"""Make the world of drawings: fetch the sets, render the pictures, train the teacher."""
