// serve_by_jni LIBRARY: loads an Android JNI library as a virtual machine would, without one, and lets its worker serve stdin,
// a socket.
#include <dlfcn.h>
#include <jni.h>
#include <stdio.h>
#include <string.h>

static void (*serve)(JNIEnv*, jclass, jint);

static jclass find_class(JNIEnv* env, const char* name) {
  (void)env;
  return strncmp(name, "io/github/edgeqkv/", 18) == 0 ? (jclass)name : NULL;
}
static jobject same(JNIEnv* env, jobject object) {
  (void)env;
  return object;
}
static void forget(JNIEnv* env, jobject object) { (void)env, (void)object; }
static jmethodID method_of(JNIEnv* env, jclass class, const char* name, const char* signature) {
  (void)env, (void)class, (void)signature;
  return (jmethodID)name;
}
static jint take(JNIEnv* env, jclass class, const JNINativeMethod* methods, jint count) {
  (void)env, (void)class;
  for (jint i = 0; i < count; i++)
    if (strcmp(methods[i].name, "serve") == 0 && strcmp(methods[i].signature, "(I)V") == 0) serve = methods[i].fnPtr;
  return JNI_OK;
}
static const struct JNINativeInterface_ environment = {.FindClass = find_class,
                                                       .NewGlobalRef = same,
                                                       .DeleteLocalRef = forget,
                                                       .GetStaticMethodID = method_of,
                                                       .GetMethodID = method_of,
                                                       .RegisterNatives = take};
static JNIEnv env = &environment;

static jint get_env(JavaVM* vm, void** out, jint version) {
  (void)vm, (void)version;
  *out = &env;
  return JNI_OK;
}
static const struct JNIInvokeInterface_ machine = {.GetEnv = get_env};

int main(int argc, char** argv) {
  JavaVM vm = &machine;
  void* library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
  jint (*on_load)(JavaVM*, void*) = library ? (jint(*)(JavaVM*, void*))dlsym(library, "JNI_OnLoad") : NULL;
  if (!on_load || on_load(&vm, NULL) != JNI_VERSION_1_6 || !serve) {
    const char* why = dlerror();
    fprintf(stderr, "no worker in %s: %s\n", argc == 2 ? argv[1] : "nothing", why ? why : "it is not registered");
    return 1;
  }
  serve(&env, NULL, 0);
  return 0;
}
