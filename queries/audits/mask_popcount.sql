-- `changed` of a block is the number of bits set.
--
-- Protects the overlaps, which count bits, from contradicting the sparsities, which add `changed`.
-- An empty blob does not cast to BIT.
SELECT
    'changed is not the number of bits set' AS problem,
    pair_id, criterion, tensor_key, block, changed,
    CASE WHEN octet_length(bits) > 0 THEN bit_count(bits::BIT) ELSE 0 END AS bits_set
FROM masks
WHERE bits_set IS DISTINCT FROM changed;
