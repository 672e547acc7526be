/* libnvidia-ml.so.1 that plays a text file: a machine with GPUs for tests of the real binding.
 *
 * Layouts and codes as in nvidia-ml-py 13 (pynvml.py), which follows NVIDIA's nvml.h.
 * Build    cc -shared -fPIC -o libnvidia-ml.so.1 nvml.c     (library.py does)
 * Use      LD_LIBRARY_PATH=<its folder> FAKE_NVML=<trace> python ...
 *
 * The trace is looked at on every call and read again when it was replaced. Replace it as a
 * whole: write a file beside it, then rename. Without a trace nvmlInit answers 9 (no driver).
 *
 * One statement a line, words apart by spaces; # begins a comment. What a trace does not say
 * is answered with 3 (not supported). Times are microseconds since 1970.
 *
 *   boot N                    the driver's life; another N: everything answers 1 (uninitialized)
 *                             until nvmlInit is called again
 *   error FUNCTION CODE       the function answers CODE; before the first `gpu` for all,
 *                             after a `gpu` or `mig` for that one; FUNCTION * means every one
 *   slow FUNCTION MS          the function takes so long, in the same places
 *   gpu UUID                  a GPU; the lines below it are its own. Index: by appearance
 *     plugged                 only a session that is begun from now on sees it (list such last)
 *     bus 00000000:3B:00.0    PCI address            minor N    /dev/nvidiaN
 *     name TEXT_WITHOUT_SPACE                        arch N     9 is Hopper
 *     cc MAJOR MINOR          compute capability     limit_mw MIN MAX
 *     energy_mj MJ [AT MW]    the energy counter; with AT and MW it grows by MW from AT on
 *     power_mw MW             nvmlDeviceGetPowerUsage
 *     instant_mw MW [AT]      field 186, measured at AT (without: now)
 *     util PERCENT            nvmlDeviceGetUtilizationRates
 *     process KIND PID [GI CI]  has it open; KIND: compute, graphics or mps
 *     sample PID AT SM        per-process utilisation: one sample, SM in percent
 *     busy PID SM [MS]        a sample of it every MS (default 200), on multiples of MS, for ever
 *     accounting 0|1          accounting mode; 0: off
 *     accounted PID TIME_MS UTIL START RUNNING
 *     slices N                of the whole GPU (default 7)
 *     gpm                     GPM is supported
 *     mig UUID GI CI SLICES [CI_SLICES]   a MIG device, and MIG mode; the lines below are its own:
 *       sample, busy, error   as above (without any, its per-process utilisation answers 3)
 *       sm PERCENT            GPM's SM activity of its GPU instance
 *
 * Per-process utilisation of a GPU without MIG and without samples answers 6 (not found).
 * A GPU that left the trace answers 15 (lost) through its old handle.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

enum { SUCCESS, UNINITIALIZED, INVALID, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 6,
       TOO_SMALL = 7, NO_DRIVER = 9, LOST = 15 };
enum { GPUS = 16, MIGS = 16, PROCESSES = 512, SAMPLES = 4096, BUSY = 512, ERRORS = 64,
       ACCOUNTED = 4000, HANDLES = 512, WORD = 96 };
#define NOWHERE 0xFFFFFFFFu
#define EXPORT __attribute__((visibility("default")))

typedef unsigned int u32;
typedef unsigned long long u64;
typedef struct { char function[WORD]; int code; } Error;
typedef struct { int count; Error of[ERRORS]; } Errors;
typedef struct { u32 pid; u64 at; u32 sm; } Told;
typedef struct { u32 pid, sm; u64 period_us; } Steady;
typedef struct { int tolds, steadies; Told told[SAMPLES]; Steady steady[BUSY]; } Use;
typedef struct { char kind; u32 pid, gi, ci; } Process;
typedef struct { u32 pid; u64 time_ms, start; u32 util, running; } Accounted;
typedef struct {
    char uuid[WORD];
    u32 gi, ci, slices, ci_slices;
    double sm;
    int has_sm;
    Errors errors, slow;
    Use use;
} Mig;
typedef struct {
    char uuid[WORD], bus[32], name[WORD];
    int minor, arch, cc_major, cc_minor, util, accounting, gpm, plugged;
    u32 limit_min, limit_max, slices;
    int has_energy, has_power, has_instant, has_limit;
    int process_count, accounted_count, mig_count;
    u64 energy_mj, energy_at, energy_mw, power_mw, instant_mw, instant_at;
    Errors errors, slow; /* from here on pages that nobody fills are never touched: the agent's */
    Use use;       /* memory is measured with this library in it */
    Process processes[PROCESSES];
    Accounted accounted[ACCOUNTED];
    Mig migs[MIGS];
} Gpu;

static Gpu gpus[GPUS];
static int gpu_count, boot, born_boot = -1, initialized, have_trace;
static Errors everywhere, slow_everywhere;
static struct stat read_stat;
static char handles[HANDLES][WORD];
static int handle_count;
static char seen_by_session[GPUS][WORD];
static int seen_count;
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

static u64 now_us(void) {
    struct timeval now;
    gettimeofday(&now, NULL);
    return (u64)now.tv_sec * 1000000u + (u64)now.tv_usec;
}

static void statement(char *line, Gpu **gpu, Mig **mig) {
    char word[8][WORD] = {{0}};
    u64 number[8] = {0};
    char *hash = strchr(line, '#');
    if (hash) *hash = 0;
    int words = sscanf(line, "%95s %95s %95s %95s %95s %95s %95s %95s", word[0], word[1], word[2],
                       word[3], word[4], word[5], word[6], word[7]);
    if (words < 1) return;
    for (int i = 0; i < words; i++) number[i] = strtoull(word[i], NULL, 0);
#define IS(name) (!strcmp(word[0], name))
    if (IS("boot")) boot = (int)number[1];
    else if (IS("error") || IS("slow")) {
        Errors *to = *mig ? &(*mig)->errors : *gpu ? &(*gpu)->errors : &everywhere;
        if (IS("slow")) to = *mig ? &(*mig)->slow : *gpu ? &(*gpu)->slow : &slow_everywhere;
        if (to->count < ERRORS) {
            strcpy(to->of[to->count].function, word[1]);
            to->of[to->count++].code = (int)number[2];
        }
    } else if (IS("gpu")) {
        if (gpu_count == GPUS) return;
        *mig = NULL;
        *gpu = &gpus[gpu_count];
        memset(*gpu, 0, offsetof(Gpu, errors));
        (*gpu)->errors.count = (*gpu)->slow.count = (*gpu)->use.tolds = (*gpu)->use.steadies = 0;
        strcpy((*gpu)->uuid, word[1]);
        snprintf((*gpu)->bus, 32, "00000000:%02X:00.0", 0x3B + gpu_count);
        strcpy((*gpu)->name, "Played");
        (*gpu)->minor = gpu_count++;
        (*gpu)->arch = (*gpu)->cc_major = (*gpu)->util = (*gpu)->accounting = -1;
        (*gpu)->slices = 7;
    }
    if (!*gpu || IS("gpu") || IS("error") || IS("slow")) return;
    Gpu *g = *gpu;
    Use *use = *mig ? &(*mig)->use : &g->use;
    if (IS("bus")) snprintf(g->bus, 32, "%.31s", word[1]);
    else if (IS("name")) strcpy(g->name, word[1]);
    else if (IS("minor")) g->minor = (int)number[1];
    else if (IS("arch")) g->arch = (int)number[1];
    else if (IS("cc")) { g->cc_major = (int)number[1]; g->cc_minor = (int)number[2]; }
    else if (IS("limit_mw")) { g->has_limit = 1; g->limit_min = number[1]; g->limit_max = number[2]; }
    else if (IS("energy_mj")) {
        g->has_energy = 1;
        g->energy_mj = number[1]; g->energy_at = number[2]; g->energy_mw = number[3];
    } else if (IS("power_mw")) { g->has_power = 1; g->power_mw = number[1]; }
    else if (IS("instant_mw")) { g->has_instant = 1; g->instant_mw = number[1]; g->instant_at = number[2]; }
    else if (IS("util")) g->util = (int)number[1];
    else if (IS("accounting")) g->accounting = (int)number[1];
    else if (IS("slices")) g->slices = number[1];
    else if (IS("gpm")) g->gpm = 1;
    else if (IS("plugged")) g->plugged = 1;
    else if (IS("process") && g->process_count < PROCESSES) {
        Process *p = &g->processes[g->process_count++];
        p->kind = word[1][0];
        p->pid = number[2];
        p->gi = words > 3 ? number[3] : NOWHERE;
        p->ci = words > 4 ? number[4] : NOWHERE;
    } else if (IS("accounted") && g->accounted_count < ACCOUNTED) {
        g->accounted[g->accounted_count++] =
            (Accounted){number[1], number[2], number[4], number[3], number[5]};
    } else if (IS("sample") && use->tolds < SAMPLES)
        use->told[use->tolds++] = (Told){number[1], number[2], number[3]};
    else if (IS("busy") && use->steadies < BUSY)
        use->steady[use->steadies++] =
            (Steady){number[1], number[2], 1000 * (words > 3 && number[3] ? number[3] : 200)};
    else if (IS("mig") && g->mig_count < MIGS) {
        *mig = &g->migs[g->mig_count++];
        memset(*mig, 0, offsetof(Mig, errors));
        (*mig)->errors.count = (*mig)->slow.count = (*mig)->use.tolds = (*mig)->use.steadies = 0;
        strcpy((*mig)->uuid, word[1]);
        (*mig)->gi = number[2];
        (*mig)->ci = number[3];
        (*mig)->slices = number[4];
        (*mig)->ci_slices = words > 5 ? number[5] : number[4];
    } else if (IS("sm") && *mig) { (*mig)->has_sm = 1; (*mig)->sm = strtod(word[1], NULL); }
}

static void see(void) {
    for (int i = 0; i < gpu_count; i++) strcpy(seen_by_session[i], gpus[i].uuid);
    seen_count = gpu_count;
}

static int hidden(const Gpu *gpu) {
    int seen = !gpu->plugged;
    for (int i = 0; i < seen_count; i++) seen |= !strcmp(seen_by_session[i], gpu->uuid);
    return !seen;
}

static void look(void) {
    const char *path = getenv("FAKE_NVML");
    struct stat seen;
    if (!path || stat(path, &seen)) { have_trace = 0; return; }
    if (have_trace && seen.st_ino == read_stat.st_ino && seen.st_size == read_stat.st_size &&
        seen.st_mtim.tv_sec == read_stat.st_mtim.tv_sec &&
        seen.st_mtim.tv_nsec == read_stat.st_mtim.tv_nsec)
        return;
    FILE *file = fopen(path, "r");
    if (!file) { have_trace = 0; return; }
    read_stat = seen;
    have_trace = 1;
    gpu_count = boot = everywhere.count = slow_everywhere.count = 0;
    Gpu *gpu = NULL;
    Mig *mig = NULL;
    char line[1024];
    while (fgets(line, sizeof line, file)) statement(line, &gpu, &mig);
    fclose(file);
    for (int i = 0; i < seen_count; i++) { /* what left is not seen when it comes back */
        int there = 0;
        for (int n = 0; n < gpu_count; n++) there |= !strcmp(seen_by_session[i], gpus[n].uuid);
        if (!there) seen_by_session[i][0] = 0;
    }
}

static int ordered(const Errors *errors, const char *function) {
    for (int i = 0; i < errors->count; i++)
        if (!strcmp(errors->of[i].function, function) || !strcmp(errors->of[i].function, "*"))
            return errors->of[i].code;
    return SUCCESS;
}

/* A handle is the address of the UUID that it was given out for. */
static void *handle_of(const char *uuid) {
    for (int i = 0; i < handle_count; i++)
        if (!strcmp(handles[i], uuid)) return handles[i];
    if (handle_count == HANDLES) return NULL;
    return strcpy(handles[handle_count++], uuid);
}

static int of_handle(void *handle, const char *function, Gpu **gpu, Mig **mig) {
    *gpu = NULL;
    *mig = NULL;
    if ((char *)handle < handles[0] || (char *)handle >= handles[HANDLES - 1]) return INVALID;
    for (int i = 0; i < gpu_count; i++) {
        if (hidden(&gpus[i])) continue;
        if (!strcmp(gpus[i].uuid, handle)) *gpu = &gpus[i];
        for (int m = 0; m < gpus[i].mig_count; m++)
            if (!strcmp(gpus[i].migs[m].uuid, handle)) { *gpu = &gpus[i]; *mig = &gpus[i].migs[m]; }
    }
    if (!*gpu) return LOST;
    int code = *mig ? ordered(&(*mig)->errors, function) : SUCCESS;
    if (!*mig && !code) code = ordered(&(*gpu)->errors, function);
    return code;
}

static void tarry(void *handle, const char *function) {
    Gpu *gpu;
    Mig *mig;
    pthread_mutex_lock(&lock);
    look();
    int ms = ordered(&slow_everywhere, function);
    if (handle) {
        of_handle(handle, function, &gpu, &mig);
        if (mig && !ms) ms = ordered(&mig->slow, function);
        if (!mig && gpu && !ms) ms = ordered(&gpu->slow, function);
    }
    pthread_mutex_unlock(&lock);
    if (ms) usleep(1000 * ms);
}

static int begin(const char *function) {
    pthread_mutex_lock(&lock);
    look();
    if (!have_trace || !initialized || boot != born_boot) return UNINITIALIZED;
    return ordered(&everywhere, function);
}

#define END(code) do { int end_ = (code); pthread_mutex_unlock(&lock); return end_; } while (0)
#define BEGIN() do { int begin_ = begin(__func__); if (begin_) END(begin_); } while (0)
#define OF_GPU(handle) \
    Gpu *g; Mig *m; tarry(handle, __func__); BEGIN(); \
    do { int of_ = of_handle(handle, __func__, &g, &m); (void)m; if (of_) END(of_); } while (0)
#define NEED(condition) do { if (!(condition)) END(NOT_SUPPORTED); } while (0)

static int put(const char *text, char *into, u32 room) {
    if (strlen(text) + 1 > room) return TOO_SMALL;
    strcpy(into, text);
    return SUCCESS;
}

/* ---- the library ---- */

EXPORT int nvmlInitWithFlags(u32 flags) {
    (void)flags;
    tarry(NULL, __func__);
    pthread_mutex_lock(&lock);
    look();
    if (!have_trace) END(NO_DRIVER);
    int code = ordered(&everywhere, __func__);
    if (code) END(code);
    initialized = 1;
    see();
    born_boot = boot;
    END(SUCCESS);
}
EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    int code = initialized ? SUCCESS : UNINITIALIZED;
    initialized = 0;
    END(code);
}
EXPORT const char *nvmlErrorString(int code) {
    static char text[32];
    snprintf(text, sizeof text, "played error %d", code);
    return text;
}
EXPORT int nvmlSystemGetDriverVersion(char *into, u32 room) { BEGIN(); END(put("550.54.15", into, room)); }

EXPORT int nvmlDeviceGetCount_v2(u32 *count) {
    BEGIN();
    *count = gpu_count;
    while (*count && hidden(&gpus[*count - 1])) --*count;
    END(SUCCESS);
}
EXPORT int nvmlDeviceGetHandleByIndex_v2(u32 index, void **handle) {
    BEGIN();
    if (index >= (u32)gpu_count) END(INVALID);
    int code = ordered(&gpus[index].errors, __func__);
    if (!code) *handle = handle_of(gpus[index].uuid);
    END(code);
}
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    BEGIN();
    for (int i = 0; i < gpu_count; i++)
        if (!strcmp(gpus[i].uuid, uuid) && !hidden(&gpus[i])) {
            int code = ordered(&gpus[i].errors, __func__);
            if (!code) *handle = handle_of(uuid);
            END(code);
        }
    END(NOT_FOUND);
}
EXPORT int nvmlDeviceGetUUID(void *handle, char *into, u32 room) {
    OF_GPU(handle);
    END(put(m ? m->uuid : g->uuid, into, room));
}
EXPORT int nvmlDeviceGetName(void *handle, char *into, u32 room) {
    OF_GPU(handle);
    char text[WORD * 2];
    snprintf(text, sizeof text, m ? "%s MIG %ug.10gb" : "%s", g->name, m ? m->slices : 0);
    END(put(text, into, room));
}
EXPORT int nvmlDeviceGetIndex(void *handle, u32 *index) { OF_GPU(handle); *index = g - gpus; END(SUCCESS); }
EXPORT int nvmlDeviceGetMinorNumber(void *handle, u32 *minor) { OF_GPU(handle); *minor = g->minor; END(SUCCESS); }
EXPORT int nvmlDeviceGetArchitecture(void *handle, u32 *arch) {
    OF_GPU(handle);
    NEED(g->arch >= 0);
    *arch = g->arch;
    END(SUCCESS);
}
EXPORT int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    OF_GPU(handle);
    NEED(g->cc_major >= 0);
    *major = g->cc_major;
    *minor = g->cc_minor;
    END(SUCCESS);
}
typedef struct { char legacy[16]; u32 domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
EXPORT int nvmlDeviceGetPciInfo_v3(void *handle, Pci *pci) {
    OF_GPU(handle);
    memset(pci, 0, sizeof *pci);
    strcpy(pci->bus_id, g->bus);
    snprintf(pci->legacy, 16, "%.15s", strlen(g->bus) > 4 ? g->bus + 4 : g->bus);
    sscanf(g->bus, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
    END(SUCCESS);
}

EXPORT int nvmlDeviceGetTotalEnergyConsumption(void *handle, u64 *mj) {
    OF_GPU(handle);
    NEED(!m && g->has_energy);
    u64 now = now_us();
    *mj = g->energy_mj;
    if (g->energy_at && now > g->energy_at) *mj += (now - g->energy_at) * g->energy_mw / 1000000u;
    END(SUCCESS);
}
EXPORT int nvmlDeviceGetPowerUsage(void *handle, u32 *mw) {
    OF_GPU(handle);
    NEED(!m && g->has_power);
    *mw = g->power_mw;
    END(SUCCESS);
}
EXPORT int nvmlDeviceGetPowerManagementLimitConstraints(void *handle, u32 *min, u32 *max) {
    OF_GPU(handle);
    NEED(!m && g->has_limit);
    *min = g->limit_min;
    *max = g->limit_max;
    END(SUCCESS);
}
EXPORT int nvmlDeviceGetEnforcedPowerLimit(void *handle, u32 *mw) {
    OF_GPU(handle);
    NEED(!m && g->has_limit);
    *mw = g->limit_max;
    END(SUCCESS);
}
typedef struct {
    u32 id, scope;
    int64_t timestamp, latency_us;
    u32 type;
    int code;
    union { double d; u32 u; u64 ull; } value;
} Field;
EXPORT int nvmlDeviceGetFieldValues(void *handle, int count, Field *fields) {
    OF_GPU(handle);
    for (int i = 0; i < count; i++) {
        Field *f = &fields[i];
        f->code = NOT_SUPPORTED;
        f->timestamp = (int64_t)now_us();
        if (f->id == 186 && g->has_instant && !m) {
            f->code = SUCCESS;
            f->type = 1; /* unsigned int */
            f->value.u = g->instant_mw;
            if (g->instant_at) f->timestamp = (int64_t)g->instant_at;
        }
    }
    END(SUCCESS);
}
EXPORT int nvmlDeviceGetUtilizationRates(void *handle, u32 *gpu_and_memory) {
    OF_GPU(handle);
    NEED(!m && g->util >= 0 && !g->mig_count);
    gpu_and_memory[0] = g->util;
    gpu_and_memory[1] = 0;
    END(SUCCESS);
}

typedef struct { u32 pid; u64 at; u32 sm, memory, encoder, decoder; } Sample;
static u32 samples_since(const Use *use, u64 since, Sample *into) {
    u32 count = 0;
    u64 now = now_us();
    for (int i = 0; i < use->tolds; i++) {
        if (use->told[i].at <= since) continue;
        if (into) into[count] = (Sample){use->told[i].pid, use->told[i].at, use->told[i].sm, 0, 0, 0};
        count++;
    }
    for (int i = 0; i < use->steadies; i++) {
        const Steady *s = &use->steady[i];
        u64 oldest = now - 5000000u; /* the driver's buffer is not endless */
        for (u64 at = ((since > oldest ? since : oldest) / s->period_us + 1) * s->period_us; at <= now;
             at += s->period_us) {
            if (into) into[count] = (Sample){s->pid, at, s->sm, 0, 0, 0};
            count++;
        }
    }
    return count;
}
EXPORT int nvmlDeviceGetProcessUtilization(void *handle, Sample *into, u32 *count, u64 since) {
    OF_GPU(handle);
    const Use *use = m ? &m->use : &g->use;
    NEED((!m && !g->mig_count) || use->tolds || use->steadies);
    u32 found = samples_since(use, since, NULL);
    u32 room = *count;
    *count = found;
    if (!found) END(NOT_FOUND);
    if (!into || room < found) END(TOO_SMALL);
    samples_since(use, since, into);
    END(SUCCESS);
}

typedef struct { u32 pid; u64 memory; u32 gi, ci; } Running;
static int running(Gpu *g, Mig *m, char kind, u32 *count, Running *into) {
    u32 found = 0, room = *count;
    for (int pass = 0; pass < 2; pass++) {
        u32 n = 0;
        for (int i = 0; i < g->process_count; i++) {
            Process *p = &g->processes[i];
            if (p->kind != kind || (m && (p->gi != m->gi || p->ci != m->ci))) continue;
            if (pass) into[n] = (Running){p->pid, 1 << 20, p->gi, p->ci};
            n++;
        }
        found = n;
        if (!pass) {
            *count = found;
            if (!found) return SUCCESS;
            if (!into || room < found) return TOO_SMALL;
        }
    }
    return SUCCESS;
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, u32 *count, Running *into) {
    OF_GPU(handle);
    END(running(g, m, 'c', count, into));
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, u32 *count, Running *into) {
    OF_GPU(handle);
    END(running(g, m, 'c', count, into));
}
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, u32 *count, Running *into) {
    OF_GPU(handle);
    END(running(g, m, 'g', count, into));
}
EXPORT int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *handle, u32 *count, Running *into) {
    OF_GPU(handle);
    END(running(g, m, 'm', count, into));
}

EXPORT int nvmlDeviceGetAccountingMode(void *handle, u32 *mode) {
    OF_GPU(handle);
    NEED(g->accounting >= 0);
    *mode = g->accounting;
    END(SUCCESS);
}
EXPORT int nvmlDeviceGetAccountingBufferSize(void *handle, u32 *size) {
    OF_GPU(handle);
    NEED(g->accounting >= 0);
    *size = ACCOUNTED;
    END(SUCCESS);
}
EXPORT int nvmlDeviceGetAccountingPids(void *handle, u32 *count, u32 *pids) {
    OF_GPU(handle);
    NEED(g->accounting >= 0);
    if (*count < (u32)g->accounted_count) END(TOO_SMALL);
    *count = g->accounted_count;
    for (int i = 0; i < g->accounted_count; i++) pids[i] = g->accounted[i].pid;
    END(SUCCESS);
}
typedef struct { u32 util, memory_util; u64 max_memory, time_ms, start; u32 running, reserved[5]; } Stats;
EXPORT int nvmlDeviceGetAccountingStats(void *handle, u32 pid, Stats *stats) {
    OF_GPU(handle);
    NEED(g->accounting >= 0);
    for (int i = g->accounted_count - 1; i >= 0; i--) {
        Accounted *a = &g->accounted[i];
        if (a->pid != pid) continue;
        memset(stats, 0, sizeof *stats);
        stats->util = a->util;
        stats->time_ms = a->running ? 0 : a->time_ms;
        stats->start = a->start;
        stats->running = a->running;
        END(SUCCESS);
    }
    END(NOT_FOUND);
}

EXPORT int nvmlDeviceGetMigMode(void *handle, u32 *current, u32 *pending) {
    OF_GPU(handle);
    *current = *pending = g->mig_count > 0;
    END(SUCCESS);
}
EXPORT int nvmlDeviceGetMaxMigDeviceCount(void *handle, u32 *count) {
    OF_GPU(handle);
    *count = g->mig_count ? g->slices : 0;
    END(SUCCESS);
}
EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, u32 index, void **mig) {
    OF_GPU(handle);
    if (index >= (u32)g->mig_count) END(NOT_FOUND);
    *mig = handle_of(g->migs[index].uuid);
    END(SUCCESS);
}
EXPORT int nvmlDeviceGetGpuInstanceId(void *handle, u32 *id) { OF_GPU(handle); NEED(m); *id = m->gi; END(SUCCESS); }
EXPORT int nvmlDeviceGetComputeInstanceId(void *handle, u32 *id) { OF_GPU(handle); NEED(m); *id = m->ci; END(SUCCESS); }
typedef struct { u32 sms, copy, decoder, encoder, jpeg, ofa, slices, ci_slices; u64 memory_mb; } Attributes;
EXPORT int nvmlDeviceGetAttributes_v2(void *handle, Attributes *a) {
    OF_GPU(handle);
    NEED(m);
    memset(a, 0, sizeof *a);
    a->slices = m->slices;
    a->ci_slices = m->ci_slices;
    END(SUCCESS);
}
typedef struct {
    u32 version, id, p2p, slices, instances, sms, copy, decoder, encoder, jpeg, ofa;
    u64 memory_mb;
    char name[96];
} Profile;
EXPORT int nvmlDeviceGetGpuInstanceProfileInfoV(void *handle, u32 profile, Profile *info) {
    static const u32 slices[] = {1, 2, 3, 4, 7, 8, 6};
    OF_GPU(handle);
    NEED(g->mig_count && profile < 7 && slices[profile] <= g->slices);
    info->id = profile;
    info->slices = slices[profile];
    info->instances = g->slices / slices[profile];
    END(SUCCESS);
}

typedef struct { u64 taken_at; double sm; int has_sm; } GpmSample;
typedef struct { u32 id; int code; double value; const char *names[3]; } GpmMetric;
typedef struct { u32 version, count; GpmSample *first, *second; GpmMetric metrics[1]; } GpmGet;
typedef struct { u32 version, supported; } GpmSupport;
EXPORT int nvmlGpmQueryDeviceSupport(void *handle, GpmSupport *support) {
    OF_GPU(handle);
    support->supported = g->gpm;
    END(SUCCESS);
}
EXPORT int nvmlGpmSampleAlloc(GpmSample **sample) {
    BEGIN();
    *sample = calloc(1, sizeof **sample);
    END(SUCCESS);
}
EXPORT int nvmlGpmSampleFree(GpmSample *sample) { free(sample); return SUCCESS; }
EXPORT int nvmlGpmMigSampleGet(void *handle, u32 gi, GpmSample *sample) {
    OF_GPU(handle);
    NEED(g->gpm);
    for (int i = 0; i < g->mig_count; i++)
        if (g->migs[i].gi == gi) {
            *sample = (GpmSample){now_us(), g->migs[i].sm, g->migs[i].has_sm};
            END(SUCCESS);
        }
    END(NOT_FOUND);
}
EXPORT int nvmlGpmMetricsGet(GpmGet *get) {
    BEGIN();
    if (get->version != 1 || !get->first || !get->second) END(INVALID);
    for (u32 i = 0; i < get->count; i++) {
        int told = get->metrics[i].id == 2 && get->second->has_sm;
        get->metrics[i].code = told ? SUCCESS : NOT_SUPPORTED;
        get->metrics[i].value = told ? get->second->sm : 0.0;
    }
    END(SUCCESS);
}
