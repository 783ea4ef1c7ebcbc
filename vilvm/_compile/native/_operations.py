"""The operations of torch that a native program has, as expressions in C.

``{0}``, ``{1}``, ... stand for the operands, each converted to the type in which the operation
computes; ``{f}`` is the suffix of the mathematical functions of that type.
"""

__all__ = ["COMPARISONS", "POINTWISE", "PRELUDE", "REDUCTIONS"]

# computed in the type of the result
POINTWISE = {
    "acos": "acos{f}({0})",
    "add": "{0} + {1}",
    "asin": "asin{f}({0})",
    "atan": "atan{f}({0})",
    "atan2": "atan2{f}({0}, {1})",
    "bitwise_and": "{0} & {1}",
    "bitwise_or": "{0} | {1}",
    "bitwise_xor": "{0} ^ {1}",
    "ceil": "ceil{f}({0})",
    "cos": "cos{f}({0})",
    "cosh": "cosh{f}({0})",
    "digamma": "digamma({0})",
    "div": "{0} / {1}",
    "erf": "erf{f}({0})",
    "erfc": "erfc{f}({0})",
    "exp": "exp{f}({0})",
    "exp2": "exp2{f}({0})",
    "expm1": "expm1{f}({0})",
    "floor": "floor{f}({0})",
    "lgamma": "lgamma{f}({0})",
    "log": "log{f}({0})",
    "log10": "log10{f}({0})",
    "log1p": "log1p{f}({0})",
    "log2": "log2{f}({0})",
    "maximum": "({0} != {0} || {0} > {1} ? {0} : {1})",
    "minimum": "({0} != {0} || {0} < {1} ? {0} : {1})",
    "mul": "{0} * {1}",
    "neg": "-{0}",
    "pow": "pow{f}({0}, {1})",
    "reciprocal": "1 / {0}",
    "relu": "({0} <= 0 ? 0 : {0})",
    "round": "nearbyint{f}({0})",
    "rsqrt": "1 / sqrt{f}({0})",
    "sigmoid": "1 / (1 + exp{f}(-{0}))",
    "sign": "(({0} > 0) - ({0} < 0))",
    "sin": "sin{f}({0})",
    "sinh": "sinh{f}({0})",
    "sqrt": "sqrt{f}({0})",
    "sub": "{0} - {1}",
    "tan": "tan{f}({0})",
    "tanh": "tanh{f}({0})",
    "trunc": "trunc{f}({0})",
}

# computed in the common type of the operands; the result is a truth value
COMPARISONS = {
    "bitwise_not": "!{0}",
    "eq": "{0} == {1}",
    "ge": "{0} >= {1}",
    "gt": "{0} > {1}",
    "isinf": "({0} - {0} != 0) && {0} == {0}",
    "isnan": "{0} != {0}",
    "le": "{0} <= {1}",
    "logical_and": "{0} && {1}",
    "logical_not": "!{0}",
    "logical_or": "{0} || {1}",
    "logical_xor": "!{0} != !{1}",
    "lt": "{0} < {1}",
    "ne": "{0} != {1}",
}

# the value before the first element, and the value after one more
REDUCTIONS = {
    "all": ("1", "{0} && {1} != 0"),
    "amax": ("-INFINITY", "({1} > {0} || {1} != {1} ? {1} : {0})"),
    "amin": ("INFINITY", "({1} < {0} || {1} != {1} ? {1} : {0})"),
    "any": ("0", "{0} || {1} != 0"),
    "prod": ("1", "{0} * {1}"),
    "sum": ("0", "{0} + {1}"),
}

# The parts that do not depend on the graph. `Torch` holds functions of torch's C interface
# (torch/csrc/inductor/aoti_torch/c/shim.h), by which noise comes from torch's own generator.
PRELUDE = r"""
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef int32_t (*Draw)(const int64_t*, int64_t, const int32_t*, const int32_t*, const int32_t*,
                        int32_t, const int32_t*, void**);
struct Torch {
    Draw normal, uniform;
    int32_t (*data)(void*, void**);
    int32_t (*release)(void*);
};

/* The state of torch's generator on a CPU, as get_rng_state returns it: a Mersenne Twister, and
   the second of two normal numbers that were drawn together. */
struct Generator {
    uint64_t seed;
    int32_t left, seeded;
    uint64_t next, state[624];
    double x, second, rho;
    int32_t has_second;
};

static uint32_t word(Generator* g) {
    uint64_t* s = g->state;
    if (--g->left == 0) {
        for (int i = 0; i < 624; i++) {
            const uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % 624] & 0x7fffffffu);
            const uint32_t odd = s[(i + 1) % 624] & 1 ? 0x9908b0dfu : 0;
            s[i] = (uint32_t)s[(i + 397) % 624] ^ (y >> 1) ^ odd;
        }
        g->left = 624;
        g->next = 0;
    }
    uint32_t y = s[g->next++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

static double uniform53(Generator* g) {
    const uint64_t high = word(g), low = word(g);
    return ((high << 32 | low) & ((1ull << 53) - 1)) * (1.0 / (1ull << 53));
}

/* A normal number, as torch draws fewer than 16 of them. */
static double normal(Generator* g) {
    if (g->has_second) {
        const double second = g->second;
        g->has_second = 0;
        g->second = 0;
        return second;
    }
    const double u1 = uniform53(g), u2 = uniform53(g);
    const double r = sqrt(-2.0 * log1p(-u2)), angle = 2.0 * 3.14159265358979323846 * u1;
    g->has_second = 1;
    g->second = r * sin(angle);
    return r * cos(angle);
}

extern "C" void normals(Generator* g, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i++) to[i] = normal(g);
}

static int draw(const Torch* torch, Draw kind, int32_t type, const int64_t* shape, int64_t dims,
                void* to, size_t bytes) {
    const int32_t cpu = 0, pinned = 0;
    void *tensor, *from;
    if (kind(shape, dims, &type, 0, &cpu, 0, &pinned, &tensor)) return 1;
    int failed = torch->data(tensor, &from);
    if (!failed) memcpy(to, from, bytes);
    torch->release(tensor);
    return failed;
}

/* recurrence up to 10, then the asymptotic series; reflection below 0 */
static inline double digamma(double x) {
    const double pi = 3.141592653589793;
    if (x == 0) return copysign(INFINITY, -x);
    if (x < 0) return x == floor(x) ? NAN : digamma(1 - x) - pi / tan(pi * (x - floor(x)));
    double shift = 0;
    for (; x < 10; x += 1) shift -= 1 / x;
    const double s = 1 / (x * x);
    return shift + log(x) - 0.5 / x
        - s * (1. / 12 - s * (1. / 120 - s * (1. / 252 - s * (1. / 240 - s * (1. / 132
        - s * (691. / 32760 - s * (1. / 12)))))));
}
"""
