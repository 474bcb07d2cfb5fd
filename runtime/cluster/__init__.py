"""One model on many machines, by Ray: replicas of the server, and batches. Needs the extra `cluster`."""

from runtime.cluster.environment import prepare

prepare()  # before Ray is imported, which reads it then

from runtime.cluster.application import application as application
from runtime.cluster.settings import ClusterSettings as ClusterSettings
