"""`altclip embed` and `altclip search`: what is frozen is computed once, and looked up afterwards."""
