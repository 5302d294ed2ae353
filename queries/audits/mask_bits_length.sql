-- Every block has one bit a parameter, padded to whole bytes.
--
-- Protects all that reads `bits`: a short blob would cut an overlap or fail in the middle of it.
SELECT
    'bits of a block are not ceil(numel / 8) bytes' AS problem,
    pair_id, criterion, tensor_key, block, numel, octet_length(bits) AS bytes
FROM masks
WHERE octet_length(bits) IS DISTINCT FROM (numel + 7) // 8;
