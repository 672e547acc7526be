"""Errors of the agent.

AgentError                        says what is wrong and what to do next
├── BadSetting                    a configuration value the agent cannot work with
├── NotConserved                  a frame whose rows do not sum to its devices: a defect
├── SensorDenied                  a counter exists, and this user may not read it
├── SensorFailed                  a counter exists, and could not be read this time
├── SourceFailed                  who workloads belong to could not be asked this time
├── SpoolFailed                   the spool could not keep or give what was asked
│   └── SpoolInUse                another agent holds the state directory
└── UplinkRefused                 the configured way to the collector is not allowed
"""


class AgentError(Exception):
    """Says what is wrong, names the thing, and says what to do next."""

    for_people = True  # the command line prints it as one line


class BadSetting(AgentError):
    """A configuration value the agent cannot work with."""

    exit_status = 2


class NotConserved(AgentError):
    """A frame whose rows do not sum to its devices: a defect of the agent."""


class SensorDenied(AgentError):
    """A counter exists, and this user may not read it."""


class SensorFailed(AgentError):
    """A counter exists, and could not be read this time."""


class SourceFailed(AgentError):
    """A scheduler or supervisor that knows whose workloads are whose did not answer this time."""


class SpoolFailed(AgentError):
    """The spool could not keep or give what was asked; nothing it held has changed."""


class SpoolInUse(SpoolFailed):
    """Another agent holds the state directory."""


class UplinkRefused(AgentError):
    """The configured way to the collector is malformed, or plaintext beyond loopback."""

    exit_status = 2
