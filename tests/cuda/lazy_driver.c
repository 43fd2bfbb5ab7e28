/* A stand-in for libcuda.so.1 that does nothing before it must.
 *
 * Device and pinned memory come from malloc, poisoned. A stream is a queue; an operation runs only
 * when a synchronisation forces it. A missing wait, a buffer that is filled again too early or an
 * address that was not set therefore shows as a wrong value, every time, on a machine without a
 * GPU. What pycuda links and these tests do not need answers CUDA_ERROR_NOT_SUPPORTED.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101,
  INVALID_CONTEXT = 201, INVALID_HANDLE = 400, ILLEGAL_STATE = 401, NOT_READY = 600,
  ILLEGAL_ADDRESS = 700, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901
};
enum { POISON_DEVICE = 0xA5, POISON_PINNED = 0x5A, POISON_FREED = 0xDD, MAX_DEPTH = 64 };

typedef int Result;
typedef void (*Callback)(void *);
typedef struct Op {
  enum { COPY, CALL, RECORD, WAIT } kind;
  void *to;
  const void *from;
  size_t bytes;
  Callback call;
  void *argument;
  struct Event *event;
  uint64_t ticket; /* of the record that RECORD makes, or that WAIT waits for */
  struct Op *next;
} Op;
typedef struct Graph { /* what a stream was given while it captured; also its executable form */
  Op *first, *last;
  int broken; /* something was called that cannot be captured */
} Graph;
typedef struct Stream {
  Op *first, *last;
  int running;
  Graph *capture;
  struct Stream *next;
} Stream;
typedef struct Event {
  Stream *stream;
  uint64_t recorded, done;
  struct timespec at; /* when the record was executed */
} Event;
typedef struct Block {
  char *start;
  size_t bytes;
  struct Block *next;
} Block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t idle = PTHREAD_COND_INITIALIZER;
static Stream *streams, default_stream;
static Block *blocks;
static int the_context, retained;
static long freed_in_flight, forced, memory_limit = -1, memory_used, pinned_used, streams_alive,
    blocking_streams;
static long graphs_alive, graph_launches;
static int broken_waits;
static __thread int depth;
static __thread Graph *capturing; /* by this thread */
static uint64_t tickets;

/* ---- what the tests ask ------------------------------------------------------------------- */

int lazy_context_depth(void) { return depth; }
int lazy_retained(void) { return retained; }
/* How many blocks were freed while a queued copy still used them, since the last call. */
long lazy_freed_in_flight(void) {
  long count = freed_in_flight;
  freed_in_flight = 0;
  return count;
}
long lazy_forced(void) { return forced; }
long lazy_memory_used(void) { return memory_used; }
long lazy_pinned_used(void) { return pinned_used; }
long lazy_streams(void) { return streams_alive; }
long lazy_blocking_streams(void) { return blocking_streams; }
void lazy_set_memory_limit(long bytes) { memory_limit = bytes; }
long lazy_graphs(void) { return graphs_alive; }
long lazy_graph_launches(void) { return graph_launches; }
/* From now on, as after a kernel that has read where it must not: every wait fails. */
void lazy_break_waits(int yes) { broken_waits = yes; }

/* ---- queues ------------------------------------------------------------------------------- */

static Stream *stream_of(void *handle) { return handle ? (Stream *)handle : &default_stream; }

static void push(Op **first, Op **last, Op *op) {
  op->next = NULL;
  if (*last) (*last)->next = op; else *first = op;
  *last = op;
}

/* While a thread captures, what would wait or allocate is refused and ends the capture. */
static int ends_capture(void) {
  if (capturing) capturing->broken = 1;
  return capturing != NULL;
}

static Result append(void *handle, Op op) {
  if (!depth) return INVALID_CONTEXT;
  Op *copy = malloc(sizeof op);
  *copy = op;
  pthread_mutex_lock(&lock);
  Stream *stream = stream_of(handle);
  if (stream->capture) { /* an event that is recorded there cannot be waited for by the host */
    if (copy->kind == RECORD || copy->kind == WAIT) stream->capture->broken = 1;
    push(&stream->capture->first, &stream->capture->last, copy);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
  }
  if (copy->kind == RECORD) {
    copy->event->stream = stream;
    copy->ticket = copy->event->recorded = ++tickets;
  } else if (copy->kind == WAIT) {
    copy->ticket = copy->event->recorded;
  }
  push(&stream->first, &stream->last, copy);
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}

static void force_event(Event *event, uint64_t ticket);

static void run(Op *op) {
  switch (op->kind) {
    case COPY: memcpy(op->to, op->from, op->bytes); break;
    case CALL: op->call(op->argument); break;
    case RECORD:
      op->event->done = op->ticket;
      clock_gettime(CLOCK_MONOTONIC, &op->event->at);
      break;
    case WAIT: force_event(op->event, op->ticket); break;
  }
  forced++;
}

/* Run the queue, up to the record of `ticket` if that is not 0. The lock is held on entry and on
 * return, but not while an operation runs: a callback may need Python's own lock. */
static void force(Stream *stream, uint64_t ticket) {
  int last = 0;
  while (!last) {
    while (stream->running) pthread_cond_wait(&idle, &lock);
    Op *op = stream->first;
    if (!op) return;
    stream->first = op->next;
    if (!stream->first) stream->last = NULL;
    last = ticket && op->kind == RECORD && op->ticket >= ticket;
    stream->running = 1;
    pthread_mutex_unlock(&lock);
    run(op);
    pthread_mutex_lock(&lock);
    stream->running = 0;
    pthread_cond_broadcast(&idle);
    free(op);
  }
}

static void force_event(Event *event, uint64_t ticket) {
  pthread_mutex_lock(&lock);
  if (event->stream && event->done < ticket) force(event->stream, ticket);
  pthread_mutex_unlock(&lock);
}

static void force_all(void) {
  pthread_mutex_lock(&lock);
  force(&default_stream, 0);
  for (Stream *s = streams; s; s = s->next) force(s, 0);
  pthread_mutex_unlock(&lock);
}

/* A kernel: called with its argument when the stream is forced. */
Result lazy_launch(void *stream, Callback call, void *argument) {
  return append(stream, (Op){.kind = CALL, .call = call, .argument = argument});
}

Result cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *stream) {
  return append(stream, (Op){.kind = COPY, .to = (void *)to, .from = from, .bytes = n});
}
Result cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *stream) {
  return append(stream, (Op){.kind = COPY, .to = to, .from = (void *)from, .bytes = n});
}
Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *stream) {
  return append(stream, (Op){.kind = COPY, .to = (void *)to, .from = (void *)from, .bytes = n});
}
static Result copy_now(void *to, const void *from, size_t n) {
  if (!depth) return INVALID_CONTEXT;
  if (ends_capture()) return CAPTURE_UNSUPPORTED;
  force_all();
  memcpy(to, from, n);
  return SUCCESS;
}
Result cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t n) { return copy_now((void *)to, from, n); }
Result cuMemcpyDtoH_v2(void *to, uint64_t from, size_t n) { return copy_now(to, (void *)from, n); }

/* ---- streams and events ------------------------------------------------------------------- */

Result cuStreamCreate(void **out, unsigned flags) {
  if (!depth) return INVALID_CONTEXT;
  if (!(flags & 1)) blocking_streams++;
  Stream *stream = calloc(1, sizeof *stream);
  pthread_mutex_lock(&lock);
  stream->next = streams;
  streams = stream;
  streams_alive++;
  pthread_mutex_unlock(&lock);
  *out = stream;
  return SUCCESS;
}
Result cuStreamDestroy_v2(void *handle) { /* its queue still runs when something forces it */
  (void)handle;
  streams_alive--;
  return SUCCESS;
}
Result cuStreamSynchronize(void *handle) {
  if (ends_capture()) return CAPTURE_UNSUPPORTED;
  pthread_mutex_lock(&lock);
  force(stream_of(handle), 0);
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}
Result cuStreamQuery(void *handle) { return cuStreamSynchronize(handle); }
Result cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
  (void)flags;
  return append(stream, (Op){.kind = WAIT, .event = event});
}
Result cuEventCreate(void **out, unsigned flags) {
  (void)flags;
  if (!depth) return INVALID_CONTEXT;
  *out = calloc(1, sizeof(Event));
  return SUCCESS;
}
Result cuEventDestroy_v2(void *event) { (void)event; return SUCCESS; }
Result cuEventRecord(void *event, void *stream) {
  return append(stream, (Op){.kind = RECORD, .event = event});
}
Result cuEventSynchronize(void *event) {
  if (ends_capture()) return CAPTURE_UNSUPPORTED;
  if (broken_waits) return ILLEGAL_ADDRESS;
  force_event(event, ((Event *)event)->recorded);
  return SUCCESS;
}
Result cuEventQuery(void *event) { return cuEventSynchronize(event); }
/* As the real one: no time between records that nothing has forced yet. */
Result cuEventElapsedTime_v2(float *out, void *first, void *last) {
  Event *a = first, *b = last;
  if (!a->recorded || !b->recorded) return INVALID_HANDLE;
  if (a->done < a->recorded || b->done < b->recorded) return NOT_READY;
  *out = (b->at.tv_sec - a->at.tv_sec) * 1e3 + (b->at.tv_nsec - a->at.tv_nsec) / 1e6;
  return SUCCESS;
}

/* ---- graphs ------------------------------------------------------------------------------- */

Result cuStreamBeginCapture_v2(void *handle, int mode) {
  (void)mode;
  if (!handle) return CAPTURE_UNSUPPORTED;
  if (!depth) return INVALID_CONTEXT;
  Stream *stream = handle;
  if (stream->capture || capturing) return ILLEGAL_STATE;
  capturing = stream->capture = calloc(1, sizeof(Graph));
  return SUCCESS;
}
static void destroy(Graph *graph) {
  while (graph->first) {
    Op *op = graph->first;
    graph->first = op->next;
    free(op);
  }
  free(graph);
}
Result cuStreamEndCapture(void *handle, void **out) {
  Stream *stream = handle;
  Graph *graph = stream->capture;
  *out = NULL;
  if (!graph) return ILLEGAL_STATE;
  capturing = stream->capture = NULL;
  if (graph->broken) {
    destroy(graph);
    return CAPTURE_INVALIDATED;
  }
  graphs_alive++;
  *out = graph;
  return SUCCESS;
}
Result cuGraphInstantiateWithFlags(void **out, void *graph, unsigned long long flags) {
  (void)flags;
  if (!graph) return INVALID_VALUE;
  Graph *executable = calloc(1, sizeof *executable);
  for (Op *op = ((Graph *)graph)->first; op; op = op->next) {
    Op *copy = malloc(sizeof *copy);
    *copy = *op;
    push(&executable->first, &executable->last, copy);
  }
  graphs_alive++;
  *out = executable;
  return SUCCESS;
}
Result cuGraphLaunch(void *executable, void *stream) {
  for (Op *op = ((Graph *)executable)->first; op; op = op->next) {
    Result status = append(stream, *op);
    if (status) return status;
  }
  graph_launches++;
  return SUCCESS;
}
Result cuGraphDestroy(void *graph) { graphs_alive--; destroy(graph); return SUCCESS; }
Result cuGraphExecDestroy(void *executable) { return cuGraphDestroy(executable); }

/* ---- memory ------------------------------------------------------------------------------- */

static Result allocate(void **out, size_t bytes, int poison, int counted) {
  if (!depth) return INVALID_CONTEXT;
  if (ends_capture()) return CAPTURE_UNSUPPORTED;
  if (counted && memory_limit >= 0 && memory_used + (long)bytes > memory_limit) return OUT_OF_MEMORY;
  char *start = malloc(bytes ? bytes : 1);
  if (!start) return OUT_OF_MEMORY;
  Block *block = malloc(sizeof *block);
  *block = (Block){.start = start, .bytes = bytes};
  memset(start, poison, bytes);
  pthread_mutex_lock(&lock);
  block->next = blocks;
  blocks = block;
  *(counted ? &memory_used : &pinned_used) += (long)bytes;
  pthread_mutex_unlock(&lock);
  *out = block->start;
  return SUCCESS;
}

static int inside(const void *p, const Block *b) {
  return (const char *)p >= b->start && (const char *)p < b->start + b->bytes;
}

/* Freed memory is poisoned and kept: a later use shows. What is still queued is counted. */
static Result release(void *start, int counted) {
  pthread_mutex_lock(&lock);
  Block **link = &blocks;
  while (*link && (*link)->start != start) link = &(*link)->next;
  Block *block = *link;
  if (block) {
    *link = block->next;
    for (Stream *s = &default_stream; s; s = s == &default_stream ? streams : s->next)
      for (Op *op = s->first; op; op = op->next)
        if (op->kind == COPY && (inside(op->to, block) || inside(op->from, block))) freed_in_flight++;
    memset(block->start, POISON_FREED, block->bytes);
    *(counted ? &memory_used : &pinned_used) -= (long)block->bytes;
    free(block);
  }
  pthread_mutex_unlock(&lock);
  return block ? SUCCESS : INVALID_VALUE;
}

Result cuMemAlloc_v2(uint64_t *out, size_t n) { return allocate((void **)out, n, POISON_DEVICE, 1); }
Result cuMemFree_v2(uint64_t p) { return release((void *)p, 1); }
Result cuMemHostAlloc(void **out, size_t n, unsigned flags) {
  (void)flags;
  return allocate(out, n, POISON_PINNED, 0);
}
Result cuMemFreeHost(void *p) { return release(p, 0); }
Result cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  *total = 1u << 30;
  *free_bytes = *total - (size_t)memory_used;
  return SUCCESS;
}

/* ---- device and context ------------------------------------------------------------------- */


Result cuInit(unsigned flags) { (void)flags; return SUCCESS; }
Result cuDriverGetVersion(int *v) { *v = 13000; return SUCCESS; }
Result cuDeviceGetCount(int *n) { *n = 1; return SUCCESS; }
Result cuDeviceGet(int *device, int index) { *device = index; return index ? INVALID_DEVICE : SUCCESS; }
Result cuDeviceGetName(char *name, int n, int device) {
  (void)device;
  strncpy(name, "lazy host driver", (size_t)n);
  return SUCCESS;
}
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)attribute; (void)device;
  *value = 1;
  return SUCCESS;
}
Result cuDeviceTotalMem_v2(size_t *n, int device) { (void)device; *n = 1u << 30; return SUCCESS; }
Result cuDeviceComputeCapability(int *major, int *minor, int device) {
  (void)device;
  *major = 8;
  *minor = 9;
  return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(void **context, int device) {
  (void)device;
  retained++;
  *context = &the_context;
  return SUCCESS;
}
Result cuDevicePrimaryCtxRelease_v2(int device) { (void)device; retained--; return SUCCESS; }
Result cuCtxPushCurrent_v2(void *context) {
  if (context != &the_context || !retained || depth == MAX_DEPTH) return INVALID_CONTEXT;
  depth++;
  return SUCCESS;
}
Result cuCtxPopCurrent_v2(void **context) {
  if (!depth) return INVALID_CONTEXT;
  depth--;
  if (context) *context = &the_context;
  return SUCCESS;
}
Result cuCtxGetDevice(int *device) { *device = 0; return depth ? SUCCESS : INVALID_CONTEXT; }
Result cuCtxGetApiVersion(void *context, unsigned *version) { (void)context; *version = 13000; return SUCCESS; }
Result cuCtxSynchronize(void) {
  if (!depth) return INVALID_CONTEXT;
  force_all();
  return SUCCESS;
}
Result cuGetErrorString(Result status, const char **text) {
  *text = status == OUT_OF_MEMORY ? "out of memory"
        : status == INVALID_CONTEXT ? "invalid device context"
        : status == ILLEGAL_ADDRESS ? "an illegal memory access was encountered"
        : status == CAPTURE_UNSUPPORTED ? "operation not permitted when stream is capturing"
        : status == CAPTURE_INVALIDATED ? "operation failed due to a previous error during capture"
        : status == NOT_SUPPORTED ? "not supported by the lazy host driver" : "error";
  return SUCCESS;
}

/* ---- all else that pycuda links ----------------------------------------------------------- */

#define NONE(name) Result name(void) { return NOT_SUPPORTED; }
NONE(cuArray3DCreate_v2) NONE(cuArray3DGetDescriptor_v2) NONE(cuArrayCreate_v2)
NONE(cuArrayDestroy) NONE(cuArrayGetDescriptor_v2) NONE(cuCtxAttach) NONE(cuCtxCreate_v4)
NONE(cuCtxDetach) NONE(cuCtxDisablePeerAccess) NONE(cuCtxEnablePeerAccess)
NONE(cuCtxGetCacheConfig) NONE(cuCtxGetLimit) NONE(cuCtxGetSharedMemConfig)
NONE(cuCtxSetCacheConfig) NONE(cuCtxSetLimit) NONE(cuCtxSetSharedMemConfig)
NONE(cuDeviceCanAccessPeer) NONE(cuDeviceGetByPCIBusId) NONE(cuDeviceGetPCIBusId)
NONE(cuFuncGetAttribute) NONE(cuFuncSetAttribute)
NONE(cuFuncSetBlockShape) NONE(cuFuncSetCacheConfig) NONE(cuFuncSetSharedSize)
NONE(cuIpcCloseMemHandle) NONE(cuIpcGetEventHandle) NONE(cuIpcGetMemHandle)
NONE(cuIpcOpenEventHandle) NONE(cuIpcOpenMemHandle_v2) NONE(cuLaunch) NONE(cuLaunchGrid)
NONE(cuLaunchGridAsync) NONE(cuLaunchKernel) NONE(cuLinkAddData_v2) NONE(cuLinkAddFile_v2)
NONE(cuLinkComplete) NONE(cuLinkCreate_v2) NONE(cuLinkDestroy) NONE(cuMemAllocManaged)
NONE(cuMemAllocPitch_v2) NONE(cuMemGetAddressRange_v2) NONE(cuMemHostGetDevicePointer_v2)
NONE(cuMemHostGetFlags) NONE(cuMemHostRegister_v2) NONE(cuMemHostUnregister)
NONE(cuMemcpy2DAsync_v2) NONE(cuMemcpy2DUnaligned_v2) NONE(cuMemcpy2D_v2) NONE(cuMemcpy3DAsync_v2)
NONE(cuMemcpy3DPeer) NONE(cuMemcpy3DPeerAsync) NONE(cuMemcpy3D_v2) NONE(cuMemcpyAtoA_v2)
NONE(cuMemcpyAtoD_v2) NONE(cuMemcpyAtoH_v2) NONE(cuMemcpyDtoA_v2)
NONE(cuMemcpyDtoD_v2) NONE(cuMemcpyHtoA_v2) NONE(cuMemcpyPeer) NONE(cuMemcpyPeerAsync)
NONE(cuMemsetD16Async) NONE(cuMemsetD16_v2) NONE(cuMemsetD2D16Async) NONE(cuMemsetD2D16_v2)
NONE(cuMemsetD2D32Async) NONE(cuMemsetD2D32_v2) NONE(cuMemsetD2D8Async) NONE(cuMemsetD2D8_v2)
NONE(cuMemsetD32Async) NONE(cuMemsetD32_v2) NONE(cuMemsetD8Async) NONE(cuMemsetD8_v2)
NONE(cuModuleGetFunction) NONE(cuModuleGetGlobal_v2) NONE(cuModuleGetSurfRef)
NONE(cuModuleGetTexRef) NONE(cuModuleLoad) NONE(cuModuleLoadData) NONE(cuModuleLoadDataEx)
NONE(cuModuleUnload) NONE(cuParamSetSize) NONE(cuParamSetTexRef) NONE(cuParamSetf)
NONE(cuParamSeti) NONE(cuParamSetv) NONE(cuProfilerInitialize) NONE(cuProfilerStart)
NONE(cuProfilerStop) NONE(cuStreamAttachMemAsync) NONE(cuSurfRefGetArray) NONE(cuSurfRefSetArray)
NONE(cuTexRefCreate) NONE(cuTexRefDestroy) NONE(cuTexRefGetAddressMode) NONE(cuTexRefGetAddress_v2)
NONE(cuTexRefGetArray) NONE(cuTexRefGetFilterMode) NONE(cuTexRefGetFlags) NONE(cuTexRefGetFormat)
NONE(cuTexRefSetAddress2D_v3) NONE(cuTexRefSetAddressMode) NONE(cuTexRefSetAddress_v2)
NONE(cuTexRefSetArray) NONE(cuTexRefSetFilterMode) NONE(cuTexRefSetFlags) NONE(cuTexRefSetFormat)
