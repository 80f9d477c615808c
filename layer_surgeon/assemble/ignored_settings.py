"""Settings in which the sources of an assembly may differ."""

# Settings that don't change what a layer computes, or that don't have to be equal.
# fmt: off
NOT_COMPARED = frozenset(
    {
        "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache",
        "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id",
        "unk_token_id", "decoder_start_token_id", "tie_word_embeddings", "tie_weights", "max_position_embeddings",
        "n_positions", "n_ctx", "model_max_length", "max_seq_len", "initializer_range", "initializer_factor",
        "attention_dropout", "hidden_dropout", "dropout", "activation_dropout", "layerdrop",
        "attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout", "embd_pdrop", "resid_pdrop",
        "attn_pdrop", "output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id",
        "problem_type", "task_specific_params", "pretraining_tp", "chunk_size_feed_forward", "is_encoder_decoder",
        "gradient_checkpointing", "model_type", "quantization_config", "torchscript", "output_router_logits",
        "router_aux_loss_coef", "_attn_implementation_autoset", "_attn_implementation", "tokenizer_class", "prefix",
        "finetuning_task", "use_bfloat16", "pruned_heads", "cross_attention_hidden_size", "tf_legacy_loss",
        # Settings of `generate`, which older versions of transformers wrote into config.json.
        "do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
        "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "num_beams",
        "num_beam_groups", "diversity_penalty", "early_stopping", "max_length", "min_length", "max_new_tokens",
        "output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id",
        "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    }
)
# fmt: on
