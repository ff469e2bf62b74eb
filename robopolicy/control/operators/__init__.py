"""The operator family: who takes the robot over in `robopolicy run --intervene ...`, and by which device.

`make(options, context)` opens the device and returns a `robopolicy.control.robot.Operator`. The control loop asks it once in
every control step. Built in: `keyboard`, `spacemouse`, `leader` (a second arm behind a `RobotServer`).
"""
