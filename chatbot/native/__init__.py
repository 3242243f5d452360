"""The chatbot in C++, compiled on this machine for this machine: one call a reply, weights packed for streaming."""
