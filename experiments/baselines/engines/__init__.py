"""An engine in a process of its own, bound to its cores, behind one socket.

messages  what travels            host   the process: reads, answers, ends with its driver
stock     vLLM as it is           ours   a prefill worker's engine, without router and Ray
link      the driver's end: sends, receives            process  starts the process, and ends it
"""
