"""An OpenAI-compatible server over the engine: it translates, the engine decides. Needs the extra `serve`."""

from runtime.server.app import create_app as create_app
from runtime.server.settings import ServerSettings as ServerSettings
