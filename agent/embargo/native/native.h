/* CRC-32 as zlib computes it (ISO 3309), for names of some twenty octets: a table, an octet a step. */
#ifndef EMBARGO_NATIVE_H
#define EMBARGO_NATIVE_H
#include <stddef.h>
#include <stdint.h>

#ifdef Py_LIMITED_API /* one build for every Python (tools/deb): these are macros that the stable ABI has as functions alone */
#define PyBytes_AS_STRING(bytes) PyBytes_AsString(bytes)
#define PyBytes_GET_SIZE(bytes) PyBytes_Size(bytes)
#endif

static uint32_t embargo_crc_table[256];

static void embargo_crc_init(void)
{
    for (uint32_t octet = 0; octet < 256; octet++) {
        uint32_t crc = octet;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
        embargo_crc_table[octet] = crc;
    }
}

static inline uint32_t embargo_crc(const unsigned char *data, size_t length)
{
    uint32_t crc = 0xFFFFFFFFu;
    while (length--)
        crc = crc >> 8 ^ embargo_crc_table[(crc ^ *data++) & 0xFF];
    return ~crc;
}

/* The CRC-32 of each suffix of some octets, in one pass from the last octet to the first: what octet b in front of n others
   changes in their CRC depends on b and n alone. For long names, of which an attacker may choose the number of labels. */
static uint32_t embargo_crc_before[256][256]; /* by n and b; it fills when it is first needed */

static inline void embargo_crc_suffixes(const unsigned char *data, size_t length, uint32_t *suffixes)
{
    if (!embargo_crc_before[0][0]) {
        for (uint32_t octet = 0; octet < 256; octet++) {
            uint32_t change = ~(0xFFFFFFFFu >> 8 ^ embargo_crc_table[(octet ^ 0xFF) & 0xFF]);
            for (int others = 0; others < 256; others++) {
                embargo_crc_before[others][octet] = change;
                change = change >> 8 ^ embargo_crc_table[change & 0xFF];
            }
        }
    }
    uint32_t crc = 0;
    for (size_t at = length; at--;)
        suffixes[at] = crc ^= embargo_crc_before[length - 1 - at][data[at]];
}
#endif
