"""Where both stages meet: the demo, the evaluation of finished runs, and the page that shows them."""
