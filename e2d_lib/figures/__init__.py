"""The study's figures: functions of images and tables that return a matplotlib Figure; none saves anything."""
