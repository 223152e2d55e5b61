"""Pictures and tables of runs, and the page that shows them."""
