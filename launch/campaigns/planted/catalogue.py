"""All planted faults."""

from launch.campaigns.planted import data, later, model, physics, state, training

FAULTS = data.FAULTS + model.FAULTS + training.FAULTS + state.FAULTS + later.FAULTS + physics.FAULTS
