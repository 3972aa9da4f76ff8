// Exceptions through probed frames. Compiled -O2 -fPIC -shared.
#include <stdexcept>
#include <string>
#define P extern "C" __attribute__((noinline, visibility("default")))

P int th_leaf(int x) { if (x < 0) throw std::runtime_error("boom"); return x * 2; }
struct Count { static int n; ~Count() { n++; } };
int Count::n;
P int th_mid(int x) { Count c; int r = th_leaf(x); asm volatile("" : "+r"(r)); return r + 1; }
P int th_outer(int x) { Count c; int r = th_mid(x); asm volatile("" : "+r"(r)); return r + 1; }
P int th_nest(int depth, int x) { if (depth == 0) return th_outer(x); Count c; int r = th_nest(depth - 1, x); asm volatile("" : "+r"(r)); return r; }
// -1 - (destructors run) when caught
P int th_catch(int depth, int x)
{
    Count::n = 0;
    try { return th_nest(depth, x); } catch (const std::runtime_error &e) { return std::string(e.what()) == "boom" ? -1 - Count::n : 1000; }
}
P int th_rethrow(int x) { try { return th_outer(x); } catch (...) { throw; } }
P int th_catch_rethrow(int x) { try { return th_rethrow(x); } catch (std::exception &) { return -7; } }
