"""Operators: devices with which a person takes over the robot in `robopolicy run --intervene ...`.

`make(options, context)` opens the device and returns a `robopolicy.control.robot.Operator`. The control loop calls its
`act` once per control step. Built in: `keyboard`, `spacemouse`, `leader` (a second arm behind a `RobotServer`).
"""
