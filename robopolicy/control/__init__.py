"""What runs on a robot computer: kinematics, streaming, chunk execution, limits, the control loop, the server."""
