"""The demo: starts a server as a user would, asks it with the OpenAI client, and shows what was reused.

It is a client like any other. All it knows of the server is its command line and its HTTP interface.
"""
