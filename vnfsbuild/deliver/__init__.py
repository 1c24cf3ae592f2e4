"""Everything that takes capsules from one place to another and checks that they arrived as they left."""
