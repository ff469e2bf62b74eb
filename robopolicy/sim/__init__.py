"""Our MuJoCo simulator: scene, physics, tasks, renderer, environments, scripted experts."""
