"""A worker of the runner without a process, for tests that look at what is asked and answered."""


class Inline:
    """Answers at once, in this process."""

    def __init__(self, name, factory, *arguments):
        self.target = factory(*arguments)

    def call(self, method, *arguments):
        return getattr(self.target, method)(*arguments)

    def renew(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass
