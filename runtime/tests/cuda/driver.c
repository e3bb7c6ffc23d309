// A stand-in for NVIDIA's driver, for machines without one: memory is the host's, copies happen at once, kernels do not run.
//
// It checks what the real one would only punish: pointers outside of allocations, parameters that do not fit the PTX, work in a stream
// that is recorded, things used after they went. Every call is a line of the file FAKE_CUDA_LOG. FAKE_CUDA_MEMORY is the device's size, FAKE_CUDA_ZERO
// makes its memory zero at first.
// FAKE_CUDA_FAIL=cuName:N makes the N-th call of that name fail.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, CONTEXT = 201, INVALID_PTX = 218, ILLEGAL = 700 };

static FILE *out;
static size_t used, size;
static const char *fail_name = "";
static int fail_at, seen;

static void note(const char *line) {
    if (!out) {
        const char *path = getenv("FAKE_CUDA_LOG");
        out = fopen(path ? path : "/dev/null", "a");
        const char *memory = getenv("FAKE_CUDA_MEMORY");
        size = memory ? strtoull(memory, 0, 10) : (size_t)1 << 34;
        const char *fail = getenv("FAKE_CUDA_FAIL");
        if (fail) {
            static char name[64];
            sscanf(fail, "%63[^:]:%d", name, &fail_at);
            fail_name = name;
        }
    }
    fprintf(out, "%s\n", line);
    fflush(out);
}

#define CALL(...)                                                                                                      \
    do {                                                                                                               \
        char line[512];                                                                                                \
        int begin_ = snprintf(line, sizeof line, "%s ", __func__);                                                     \
        snprintf(line + begin_, sizeof line - begin_, __VA_ARGS__);                                                    \
        note(line);                                                                                                    \
        if (!strcmp(fail_name, __func__) && ++seen == fail_at) return strstr(fail_name, "Alloc") ? OUT_OF_MEMORY : ILLEGAL; \
    } while (0)

static void wrong(const char *why) {
    char line[256];
    snprintf(line, sizeof line, "WRONG %s", why);
    note(line);
}

// Allocations, host and device in one list.
struct block { char *at; size_t len; int device; };
static struct block blocks[4096];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct block *find(uint64_t at) {
    struct block *found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 4096; i++)
        if (blocks[i].at && at >= (uint64_t)blocks[i].at && at < (uint64_t)blocks[i].at + blocks[i].len) found = &blocks[i];
    pthread_mutex_unlock(&lock);
    return found;
}
static R take_locked(void **p, size_t len, int device) {
    if (device && used + len > size) return OUT_OF_MEMORY;
    for (int i = 0; i < 4096; i++)
        if (!blocks[i].at) {
            void *at;
            if (posix_memalign(&at, 512, len)) return OUT_OF_MEMORY;
            // Not initialised, and a NaN to whoever believes otherwise.
            memset(at, getenv("FAKE_CUDA_ZERO") ? 0 : 0xff, len);
            blocks[i] = (struct block){at, len, device};
            if (device) used += len;
            *p = at;
            return OK;
        }
    return OUT_OF_MEMORY;
}
static R take(void **p, size_t len, int device) {
    pthread_mutex_lock(&lock);
    R r = take_locked(p, len, device);
    pthread_mutex_unlock(&lock);
    return r;
}
static R drop(void *p) {
    struct block *b = find((uint64_t)p);
    if (!b || b->at != p) return wrong("freed what is not there"), INVALID;
    pthread_mutex_lock(&lock);
    if (b->device) used -= b->len;
    free(b->at);
    b->at = 0;
    pthread_mutex_unlock(&lock);
    return OK;
}
static int inside(uint64_t at, size_t len) {
    struct block *b = find(at);
    return b && b->device && at + len <= (uint64_t)b->at + b->len;
}

static int current, capturing;

R cuInit(unsigned f) { CALL("%u", f); return OK; }
R cuDriverGetVersion(int *v) { CALL("-"); *v = getenv("FAKE_CUDA_OLD") ? 11080 : 12040; return OK; }
R cuDeviceGetCount(int *n) { CALL("-"); *n = 1; return OK; }
R cuDeviceGet(int *d, int n) { CALL("%d", n); *d = n; return OK; }
R cuDeviceGetName(char *s, int n, int d) { CALL("%d", d); snprintf(s, n, "Stand-in H100"); return OK; }
R cuDeviceTotalMem_v2(size_t *n, int d) { CALL("%d", d); *n = size; return OK; }
R cuDeviceGetAttribute(int *v, int a, int d) {
    CALL("%d %d", a, d);
    *v = a == 75 ? 9 : a == 76 ? 0 : a == 16 ? 132 : -1;
    return OK;
}
R cuGetErrorName(R e, const char **s) { *s = e == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : e == ILLEGAL ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OTHER"; return OK; }
R cuGetErrorString(R e, const char **s) { *s = e == ILLEGAL ? "an illegal memory access was encountered" : "other"; return OK; }
R cuDevicePrimaryCtxRetain(void **c, int d) { CALL("%d", d); *c = &current; return OK; }
R cuDevicePrimaryCtxRelease_v2(int d) { CALL("%d used %zu", d, used); return OK; }
R cuCtxSetCurrent(void *c) { current = c != 0; return OK; }
R cuStreamCreate(void **s, unsigned f) { CALL("%u", f); *s = &capturing; return OK; }
R cuStreamDestroy_v2(void *s) { CALL("-"); (void)s; return OK; }
R cuStreamSynchronize(void *s) { CALL("-"); (void)s; if (capturing) wrong("waited while recording"); return OK; }
R cuMemGetInfo_v2(size_t *f, size_t *t) { *f = size - used; *t = size; return OK; }
R cuMemAlloc_v2(uint64_t *a, size_t n) { CALL("%zu", n); if (capturing) wrong("allocated while recording"); void *p = 0; R r = take(&p, n, 1); *a = (uint64_t)p; return r; }
R cuMemFree_v2(uint64_t a) { CALL("-"); return drop((void *)a); }
R cuMemHostAlloc(void **p, size_t n, unsigned f) { CALL("%zu %u", n, f); return take(p, n, 0); }
R cuMemFreeHost(void *p) { CALL("-"); return drop(p); }
R cuMemsetD8Async(uint64_t a, unsigned char v, size_t n, void *s) { CALL("%zu", n); (void)s; if (!inside(a, n)) return wrong("set outside"), INVALID; memset((void *)a, v, n); return OK; }
R cuMemcpyHtoDAsync_v2(uint64_t a, const void *p, size_t n, void *s) { CALL("%zu", n); (void)s; if (!inside(a, n)) return wrong("copied in outside"), INVALID; memcpy((void *)a, p, n); return OK; }
R cuMemcpyDtoHAsync_v2(void *p, uint64_t a, size_t n, void *s) { CALL("%zu", n); (void)s; if (!inside(a, n)) return wrong("copied back outside"), INVALID; memcpy(p, (void *)a, n); return OK; }
R cuMemcpyDtoDAsync_v2(uint64_t a, uint64_t b, size_t n, void *s) { CALL("%zu", n); (void)s; if (!inside(a, n) || !inside(b, n)) return wrong("copied outside"), INVALID; memcpy((void *)a, (void *)b, n); return OK; }

// Modules: the text, and each function's parameters as it declares them.
struct function { char name[256]; char kinds[512]; int count, shared; };
R cuModuleLoadDataEx(void **m, const void *image, unsigned n, int *options, void **values) {
    CALL("%zu bytes, %u options", strlen(image), n);
    if (!strstr(image, ".version")) {
        for (unsigned i = 0; i < n; i++)
            if (options[i] == 5) strcpy(values[i], "ptxas: line 1; fatal: this is no PTX");
        return INVALID_PTX;
    }
    *m = strdup(image);
    return OK;
}
R cuModuleUnload(void *m) { CALL("-"); free(m); return OK; }
R cuModuleGetFunction(void **f, void *m, const char *name) {
    CALL("%s", name);
    char head[300];
    snprintf(head, sizeof head, ".entry %s(", name);
    const char *at = strstr(m, head);
    if (!at) return NOT_FOUND;
    struct function *made = calloc(1, sizeof *made);
    snprintf(made->name, sizeof made->name, "%s", name);
    const char *end = strchr(at + strlen(head), ')');
    for (const char *p = at; (p = strstr(p, ".param")) && p < end; p += 6) {
        const char *stop = strpbrk(p, ",)");
        const char *big = strstr(p, ".b8");
        const char *wide = strstr(p, "64 ");
        made->kinds[made->count++] = big && big < stop ? 'M' : wide && wide < stop ? 'P' : 'I';
    }
    *f = made;
    return OK;
}
R cuFuncSetAttribute(void *f, int a, int v) { struct function *g = f; CALL("%s %d %d", g->name, a, v); if (a == 8) g->shared = v; return OK; }

struct config { unsigned gx, gy, gz, bx, by, bz, shared; void *stream; struct { int id; char pad[4]; unsigned value[16]; } *attrs; unsigned n; };
R cuLaunchKernelEx(const struct config *c, void *f, void **p, void **extra) {
    struct function *g = f;
    unsigned cluster = 1, overlap = 0;
    for (unsigned i = 0; i < c->n; i++) {
        if (c->attrs[i].id == 4) cluster = c->attrs[i].value[0];
        if (c->attrs[i].id == 6) overlap = c->attrs[i].value[0];
    }
    CALL("%s x%u t%u s%u c%u o%u%s", g->name, c->gx, c->bx, c->shared, cluster, overlap, capturing ? " recorded" : "");
    if (!c->gx || c->gy != 1 || c->gz != 1 || !c->bx || c->bx > 1024 || c->gx % cluster || extra) return wrong("a grid"), INVALID;
    if (c->shared > 48 << 10 && c->shared > (unsigned)g->shared) return wrong("shared memory was not asked for"), INVALID;
    for (int i = 0; i < g->count; i++) {
        if (g->kinds[i] == 'P' && !inside(*(uint64_t *)p[i], 1)) return wrong(g->name), ILLEGAL;
        if (g->kinds[i] == 'M' && (((uint64_t *)p[i])[15] != 0x7e45 || (uint64_t)p[i] % 64)) return wrong("no tensor map"), INVALID;
        if (g->kinds[i] == 'I' && *(int *)p[i] < 0) return wrong("a symbol below 0"), INVALID;
    }
    return OK;
}

R cuStreamBeginCapture_v2(void *s, int mode) { CALL("%d", mode); (void)s; capturing = 1; return OK; }
R cuStreamEndCapture(void *s, void **g) { CALL("-"); (void)s; capturing = 0; *g = malloc(1); return OK; }
R cuGraphInstantiateWithFlags(void **e, void *g, unsigned long long f) { CALL("%llu", f); (void)g; *e = malloc(1); return OK; }
R cuGraphDestroy(void *g) { CALL("-"); free(g); return OK; }
R cuGraphExecDestroy(void *e) { CALL("-"); free(e); return OK; }
R cuGraphLaunch(void *e, void *s) { CALL("-"); (void)e, (void)s; return OK; }

R cuEventCreate(void **e, unsigned f) { CALL("%u", f); *e = malloc(1); return OK; }
R cuEventDestroy_v2(void *e) { free(e); return OK; }
R cuEventRecord(void *e, void *s) { (void)e, (void)s; if (capturing) wrong("an event recorded in a graph without its flag"); return OK; }
R cuEventRecordWithFlags(void *e, void *s, unsigned f) { (void)e, (void)s; if (!capturing || f != 1) wrong("an event's flag"); return OK; }
R cuEventSynchronize(void *e) { (void)e; return OK; }
R cuEventElapsedTime(float *ms, void *a, void *b) { (void)a, (void)b; *ms = 0.5f; return OK; }

R cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *at, const uint64_t *dims, const uint64_t *strides, const unsigned *box, const unsigned *steps, int interleave, int swizzle, int promotion, int fill) {
    CALL("type %d rank %u %llu x %llu stride %llu box %u x %u swizzle %d promotion %d", type, rank, (unsigned long long)dims[0], rank > 1 ? (unsigned long long)dims[1] : 1ull, rank > 1 ? (unsigned long long)strides[0] : 0ull, box[0], rank > 1 ? box[1] : 1, swizzle, promotion);
    static const int widths[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
    size_t last = dims[0] * widths[type];
    for (unsigned i = 1; i < rank; i++) last += (dims[i] - 1) * strides[i - 1];
    if ((uint64_t)map % 64 || (uint64_t)at % 16 || interleave || fill || steps[0] != 1) return INVALID;
    if (!inside((uint64_t)at, last)) return wrong("a tensor map reaches outside"), INVALID;
    memset(map, 0, 128);
    ((uint64_t *)map)[15] = 0x7e45;
    return OK;
}
