"""Figures: functions of tables that give a matplotlib Figure."""
