"""Who may listen in, and who may connect: certificates, encrypted connections, credentials.

Takes plain values, and imports nothing of the parts that are secured by it.
"""
