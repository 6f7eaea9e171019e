"""Make the config of a head's own layers from what its config.json states."""

from typing import Any, TypeVar

from transformers import PretrainedConfig

from cgbench.errors import MissingHeadError, ModelError, first_line
from cgbench.inputs import JsonObject
from cgbench.models.attention_hook import ATTENTION_NAME
from cgbench.models.config_fields import check_fields, check_relations
from cgbench.models.support import HOST_READ_ROPE_TYPES, rope_types

_Config = TypeVar("_Config", bound=PretrainedConfig)


def layer_config(
    where: str, head: str, kind: type[_Config], kept: JsonObject, **fixed: Any
) -> _Config:
    """Return the config of class ``kind`` with the fields ``kept`` of the file ``where``.

    ``head`` names the head in lines, with its article. ``fixed`` fields are the head's, whatever
    the file states. Raise ``MissingHeadError`` if the fields make no config that can be run.
    """
    try:
        check_fields(where, kept | {"model_type": kind.model_type})
        config: _Config = kind(**kept, **fixed, attn_implementation=ATTENTION_NAME)
        check_relations(where, config, kept)
    except ModelError as error:
        raise MissingHeadError(str(error)) from error
    # The file is at fault, whatever transformers raises.
    except Exception as error:
        raise MissingHeadError(f"{where}: {first_line(error)}") from error
    if read := sorted(rope_types(config) & HOST_READ_ROPE_TYPES):
        raise MissingHeadError(
            f"{where}: rotary type '{read[0]}' reads values on the host, and {head} with it cannot "
            "be run here"
        )
    return config
