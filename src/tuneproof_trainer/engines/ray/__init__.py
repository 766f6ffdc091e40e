"""The ray engine: the lora engine's training as a Ray Train job over several workers.

The server's process knows nothing of Ray. Each job has a child process, as with the lora engine;
here it is the driver (`child`, `driver`), which connects to the cluster and starts a worker group.
Each worker (`member`) runs the lora engine's training as one member of a team. The leader speaks
with the driver through an actor (`desk`), the driver with the server through its pipe. Snapshots
lie in a folder that all nodes share; from them a job goes on, whoever was killed.
"""
