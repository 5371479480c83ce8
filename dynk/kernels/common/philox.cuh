// Philox4x32-10, the counter-based random number generator (Salmon et al., SC 2011): the counterpart of philox.py.
#pragma once

namespace dynk {

struct PhiloxBlock {
    unsigned word[4];
};

// The four words of a 128-bit counter and a 64-bit key.
__device__ __forceinline__ PhiloxBlock philox(unsigned c0, unsigned c1, unsigned c2, unsigned c3, unsigned k0,
                                              unsigned k1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long product0 = 0xD2511F53ull * c0, product1 = 0xCD9E8D57ull * c2;
        c0 = unsigned(product1 >> 32) ^ c1 ^ k0;
        c1 = unsigned(product1);
        c2 = unsigned(product0 >> 32) ^ c3 ^ k1;
        c3 = unsigned(product0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// The number of an element: (m + 1/2) / 2^52 with an integer m of 52 bits; exact, and neither 0 nor 1.
__device__ __forceinline__ double philox_uniform(unsigned long long index, unsigned k0, unsigned k1) {
    const PhiloxBlock block = philox(unsigned(index), unsigned(index >> 32), 0, 0, k0, k1);
    const unsigned long long m = (unsigned long long)block.word[0] << 20 | block.word[1] >> 12;
    return (double(m) + 0.5) * 0x1p-52;
}

}  // namespace dynk
