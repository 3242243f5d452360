"""A launch under load: who answers, who asks and when, and how many calls a second that tells."""
