"""What a cluster does to a run, done to a real one: each fault is injected, and what a person sees of it is timed.

Every fault runs ``python -m ray_jobs matrix`` against real Ray processes and, where something was cut off, resumes it.
Lost is what the run directory then lacks of the launches that its trials had, or has changed of those committed before.
"""
