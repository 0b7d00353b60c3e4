/* Opens every file with O_DIRECT: for programs that have no option for it. LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/types.h>

/* Only what is on the file system under test, which has this in its paths. */
#define UNDER_TEST "/mnt/"

static int direct(const char *path, int flags)
{
	return strstr(path, UNDER_TEST) ? flags | O_DIRECT : flags;
}

static mode_t mode_of(int flags, va_list rest)
{
	return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name) \
	int name(const char *path, int flags, ...) \
	{ \
		int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, #name); \
		va_list rest; \
		va_start(rest, flags); \
		mode_t mode = mode_of(flags, rest); \
		va_end(rest); \
		return next(path, direct(path, flags), mode); \
	}

#define OPENAT(name) \
	int name(int dir, const char *path, int flags, ...) \
	{ \
		int (*next)(int, const char *, int, ...) = dlsym(RTLD_NEXT, #name); \
		va_list rest; \
		va_start(rest, flags); \
		mode_t mode = mode_of(flags, rest); \
		va_end(rest); \
		return next(dir, path, direct(path, flags), mode); \
	}

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
