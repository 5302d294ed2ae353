-- How much the store holds for every pair: bytes, mask bits a parameter, and their entropy bound.
--
-- entropy_bits_a_parameter is the mean over tensors of H(density of the tensor): what an ideal
-- coder that knows each tensor's density, and nothing else, would need.
WITH listed AS (
    SELECT pair_id, unnest(parts) AS part FROM pairs
),

files AS (
    SELECT
        pair_id,
        part,
        part.path LIKE 'masks/%' AS is_mask,
        regexp_extract(part.path, 'criterion=([^/]+)', 1) AS criterion
    FROM listed
),

sizes AS (
    SELECT
        pair_id,
        sum(part.bytes)::BIGINT AS bytes,
        sum(part.bytes) FILTER (WHERE is_mask)::BIGINT AS mask_bytes,
        count(*) AS files
    FROM files
    GROUP BY pair_id
),

mask_sizes AS (
    SELECT pair_id, criterion, sum(part.bytes) AS mask_bytes
    FROM files
    WHERE is_mask
    GROUP BY ALL
),

entropies AS (
    SELECT
        pair_id,
        criterion,
        sum(numel) AS numel,
        sum(CASE
            WHEN changed > 0 AND changed < numel
                THEN -changed * log2(changed / numel)
                    - (numel - changed) * log2((numel - changed) / numel)
            ELSE 0
        END) AS bits
    FROM counts
    GROUP BY ALL
),

a_parameter AS (
    SELECT
        pair_id,
        sum(8 * m.mask_bytes) / nullif(sum(e.numel), 0) AS mask_bits_a_parameter,
        sum(e.bits) / nullif(sum(e.numel), 0) AS entropy_bits_a_parameter
    FROM mask_sizes AS m
    JOIN entropies AS e USING (pair_id, criterion)
    GROUP BY pair_id
)

SELECT
    p.name, p.algorithm, p.numel, s.files, s.bytes, s.mask_bytes,
    a.mask_bits_a_parameter,
    a.entropy_bits_a_parameter,
    p.bytes_read, p.seconds, p.created_at, p.pair_id
FROM pairs AS p
LEFT JOIN sizes AS s USING (pair_id)
LEFT JOIN a_parameter AS a USING (pair_id)
ORDER BY p.name, p.pair_id;
