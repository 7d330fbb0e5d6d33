"""What a run shows of itself: before it starts (`dry_run=true`), while it trains and afterwards (`report.html`)."""
