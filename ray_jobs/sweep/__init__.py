"""The sweep: random search over how the chatbot is trained, on Ray Tune, judged by one loss on held-out pairs."""
