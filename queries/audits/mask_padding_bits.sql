-- Bits after the last parameter of a block are 0.
--
-- Protects popcounts, which count whole bytes. Parameter 8j+i is bit i of byte j, and BIT starts at
-- the highest bit of a byte, so the padding is the first bits of the last byte.
SELECT
    'padding bits are set' AS problem,
    pair_id, criterion, tensor_key, block, numel
FROM masks
WHERE CASE
    WHEN numel % 8 <> 0 AND octet_length(bits) = (numel + 7) // 8
        THEN left(bits[-1:]::BIT::VARCHAR, 8 - numel % 8) LIKE '%1%'
END;
