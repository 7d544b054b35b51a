"""What several rooms ask alike: endpoints, prompts, schedules."""
