/* Answers pathconf(_PC_LINK_MAX) for Kiseki, whose limit README.md names: glibc has a table of file systems, and for
 * any other says 127, upon which pjdfstest leaves the test of the limit out. LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

long pathconf(const char *path, int name)
{
	long (*next)(const char *, int) = dlsym(RTLD_NEXT, "pathconf");
	return name == _PC_LINK_MAX ? 65000 : next(path, name);
}
