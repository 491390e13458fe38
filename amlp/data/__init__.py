"""From a source of pictures to shards that training reads."""
