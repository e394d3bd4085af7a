// The demo app and the library, for Gradle and Android Studio. apk/ builds the same app without either.
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositoriesMode = RepositoriesMode.FAIL_ON_PROJECT_REPOS
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "edgeqkv-demo"
include(":app", ":edgeqkv")
project(":edgeqkv").projectDir = file("../runtimes/android")
