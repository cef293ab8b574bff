"""The world a controller acts in: models, trees, rounds, and the Gymnasium environments over them."""

from env.registration import register_environments

register_environments()
