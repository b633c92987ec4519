"""The users of the story: each waits 1 to 5 seconds, then asks for the primes of a random range.

    locust -f locustfile.py --headless --users 2000 --spawn-rate 200 --run-time 1m --host http://vm1
"""

import random

from locust import HttpUser, between, task


class PrimeUser(HttpUser):
    wait_time = between(1, 5)

    @task
    def primes(self):
        end = random.randint(1000, 50000)
        start = random.randint(1, end // 2)
        # One name for all ranges, or the statistics would have a row for each.
        self.client.get(f"/primes?start={start}&end={end}", name="/primes")
