"""Neural implicit action field policy: images, state and an instruction in, modulations out."""
