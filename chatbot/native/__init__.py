"""The chatbot in C++, compiled on and for this machine: one call per reply, weights packed for streaming."""
